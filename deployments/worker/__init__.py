"""Claims due deployments, runs the engine, cleans up."""
