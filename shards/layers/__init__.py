"""What the layers of every backend are made of: integers of weights, rotary positions, memory of keys and
values. numpy only; knows no model families.
"""
