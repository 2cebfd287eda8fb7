"""Does mixing help on my data? Criteria tuned alike, trained over paired seeds, compared, and looked into."""
