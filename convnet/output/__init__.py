"""What people see and keep: lines, files, results, figures."""
