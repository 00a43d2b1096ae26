"""Values that a file gives: read by name and type, held within bounds, shown in errors. It knows no model."""
