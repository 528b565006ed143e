"""Network helpers that know no protocol: TLS contexts, HTTP pools."""
