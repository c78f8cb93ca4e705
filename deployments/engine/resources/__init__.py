"""The objects at Dokploy that make up a stack: the project, the application in it and the application's domain."""
