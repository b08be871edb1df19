"""The pages that people read: data in, page out. Steps hand over facts and decisions; the words are here."""
