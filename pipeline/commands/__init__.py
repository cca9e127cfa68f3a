"""The commands, one file each: run, check, plan, status, report, redrive, verify, serve; `options`, `console`."""
