"""What several servers of one web framework have in common. Imports `contract`, `engines`,
`runtime`.
"""
