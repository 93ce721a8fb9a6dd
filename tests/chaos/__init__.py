"""Workload × fault × offline checker: what was acknowledged while parts of the real system failed is all there."""
