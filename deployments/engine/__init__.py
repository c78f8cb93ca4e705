"""The engine: Dokploy's API, the recipe of a deployment, and what runs it. Plain Python, no Django, no Channels."""
