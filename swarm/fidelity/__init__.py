"""What rows lose on the wire, as the side that reads them measures it, and the scales it asks for. No I/O;
numpy only."""
