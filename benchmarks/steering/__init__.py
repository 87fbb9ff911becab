"""What steering adds to a layer, a step and a whole decode, tool beside tool."""
