"""What is done to rows: pure computation on tables. Knows neither Prefect, nor Ray, nor storage."""
