"""Planning: settings that fit the memory budget, computed from headers alone.

Modules:
    setting_table, settings: every setting of a load; a user's settings, checked.
    solver: the search for the best settings that fit.
    planner: ``Plan`` of one choice of settings, with all its bytes.
    execution: whose operations run, what is recorded, and what guesses ahead.
    draft: the plan of a draft model beside the model that it guesses for.
    matrices: scheme, kernel and bytes of every weight.
    load_peak: peak memory while loading.
    host_split: the layers that run on the CPU when an accelerator is too small.
    kernel_choice: kernels measured to be fastest on this machine.
    expected_accuracy: expected accuracy of a choice, from measurements.

Above ``tasks`` and below ``model`` in the ladder of tests/test_house.py: imports point down only.
"""
