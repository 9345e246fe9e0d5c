"""What runs inside the machines of the gallery. Standard library only, but for the programs of machines."""
