"""Pictures of the dependency graph, as Graphviz DOT text."""
