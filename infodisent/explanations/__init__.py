"""Why an image got its class, and what a channel means."""
