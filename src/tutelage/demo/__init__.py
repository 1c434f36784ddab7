"""The embedded lesson: a small task with a right answer, its tokenizer, a tiny teacher and a student."""
