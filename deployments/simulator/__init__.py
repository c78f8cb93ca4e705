"""A simulated Dokploy server, container engine and edge router, which run as one separate process.

It answers as Dokploy v0.30.2 was recorded to answer, including its defects. Start it with
`python -m deployments.simulator`. It imports nothing of the portal.
"""
