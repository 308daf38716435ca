"""nbgrader's configuration for the book's course: run its commands in this folder, or in a copy of it."""

import os
import sys

c = get_config()  # noqa: F821, nbgrader provides it

# nbgrader looks for the program alembic on the path, where an environment that was not activated does not have it
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

c.CourseDirectory.course_id = "studybook"
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "Thumbs.db", ".DS_Store"]

c.ClearSolutions.begin_solution_delimeter = "### BEGIN SOLUTION"
c.ClearSolutions.end_solution_delimeter = "### END SOLUTION"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer here.*"

c.GenerateAssignment.post_convert_hook = "studybook.grading.common_case"

c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "studybook.grading.Whole",  # what was deleted comes back
    "nbgrader.preprocessors.OverwriteCells",  # what was changed becomes what it was, hidden tests included
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "studybook.grading.Fenced",  # nbgrader's Execute, with limits and the student's own case
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# c.Fenced.cell_seconds, c.Fenced.submission_seconds and c.Fenced.memory_gib are 30, 180 and 4 unless set here

c.GenerateFeedback.force = True  # else pages stay as they were when points change
c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "studybook.grading.Discreet",  # no hidden tests in what students read
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
