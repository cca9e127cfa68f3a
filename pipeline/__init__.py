"""The launcher: options, plan, graph, endpoint check, progress, report, verify; the local TEI is in `embedded_tei`."""
