"""The planner's spans against the best there are, found by trying all."""
