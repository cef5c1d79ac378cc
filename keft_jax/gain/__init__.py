"""The gain table: what the knowledge was worth, against controls that could explain it away."""
