"""The only folder that imports Ray: where a cluster is, the actors over the plain classes, and their handles."""
