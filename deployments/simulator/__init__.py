"""A pretend Dokploy server, container engine and edge router in one process of its own.

It answers as Dokploy v0.30.2 was recorded to answer, quirks included. Run it with
`python -m deployments.simulator`; it imports nothing of the portal.
"""
