"""Child processes: started cold or forked warm, watched by the events they print, and ended."""
