"""From logits to text: head, sampling, stops. Knows no transport."""
