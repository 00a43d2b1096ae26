"""OpenAI's form of requests and answers: names of fields, shapes of bodies and chunks. It opens no
connections."""
