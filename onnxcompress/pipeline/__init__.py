"""What the commands do, without a terminal: compress, compare, inspect."""
