"""Running sequences: their life, what they remember, and the table that holds them. Pure: no asyncio here."""
