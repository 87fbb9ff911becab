"""What the check of a fit's health costs, and how often it is right."""
