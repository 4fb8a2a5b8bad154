"""Reports that an auditor can rely on: templates filled from outputs alone, rendered into self-contained pages."""
