"""Pages and terminal tables. `writer` joins the sections; each `*_section` has one view.

Imports everything in `analysis` but `studies`.
"""
