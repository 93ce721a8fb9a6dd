"""Files of released formats, which every later version must read."""
