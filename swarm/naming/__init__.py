"""Which of several models one name means, and which announced peers are really there. Decides nothing
else.
"""
