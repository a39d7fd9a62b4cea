"""Students: the factory, the GPT-OSS shape, packed attention."""
