"""What people see beside a result: completion by their shell, progress, tables that fit."""
