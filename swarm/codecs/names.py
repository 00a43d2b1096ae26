"""The names of the kinds of wire codecs, for who must not load what computes them."""

KINDS = ("none", "bf16", "fp16", "int8", "f8", "int8s")
"""What this version speaks, as HELLO and announcements say it."""
COARSE_KINDS = ("int8", "f8", "int8s")
"""Those that may lose too much of a model's rows."""
UNPROVEN_KINDS = ("int8", "f8")
"""Those that did not pass for every model that was measured: nothing begins with one by itself where the
model's certificate does not say that it passed."""
DEFAULT_KIND = "int8s"
"""What an edge takes unless a person asks for another: where nobody has scales for it, f8 if that passed for
the model, else bf16."""
UNMEASURED_KIND = "bf16"
"""Of a model whose rows hold more than the residual stream: how coarser codecs do with those was not
measured."""
MORE_EXACT = {
    "int8s": ("f8", "bf16", "none"),
    "f8": ("bf16", "none"),
    "int8": ("bf16", "none"),
    "fp16": ("bf16", "none"),
    "bf16": ("none",),
    "none": (),
}
"""What is taken instead of a kind that a side does not speak, or that has no scales: the first that is
possible. Never int8, which loses the small channels of some models, nor fp16, which cannot hold the large
ones of others."""
