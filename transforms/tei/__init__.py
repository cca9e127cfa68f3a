"""The endpoint's client: settings, HTTP, error grammar, in-flight budget, vector checks, the client itself. No Beam import."""
