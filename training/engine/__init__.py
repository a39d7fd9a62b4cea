"""DeepSpeed around a student: its optimizer, its JSON and the memory it takes."""
