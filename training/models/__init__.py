"""Students: factories and their wrapper, packed attention, upcycling, adapters."""
