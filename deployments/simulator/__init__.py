"""A simulated Dokploy server, container engine and edge router, together in one separate process.

Its responses are those recorded from Dokploy v0.30.2, defects included. Start it with
`python -m deployments.simulator`. It imports nothing of the portal.
"""
