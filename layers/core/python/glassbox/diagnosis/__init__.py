"""Find the cause of an incident by repairing its inputs and asking the endpoint again."""
