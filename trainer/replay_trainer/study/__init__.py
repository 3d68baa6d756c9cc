"""Studies: the same fine-tuning by several methods, on several targets, with several seeds, and which one to take.

stage        takes                                 gives
settings     TOML: a job and a section `[study]`   StudySettings
cells        StudySettings                         one job for each arm, target, learning rate and seed
checks       cells                                 an error, before any work
engine       cells                                 one result file a cell, by Ray tasks
cell         one cell                              its job, trained by the loop of `replay-trainer train`, measured
outcomes     result files                          arrays over arms, pairs and domains
analysis     arrays                                intervals, the frontier, token equivalence
report       the analysis                          Parquet, Markdown, pictures, a recommendation
"""
