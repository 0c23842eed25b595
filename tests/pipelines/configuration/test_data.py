"""Sources of data: templates of text, and which column is read."""

import pytest

from pipelines.configuration.data import template_fields


def test_a_template_names_each_field_once_in_order() -> None:
    assert template_fields("{title}\n{body} {title}, {{not}} {a-b}") == ["title", "body", "a-b"]
    assert template_fields("no field") == []


@pytest.mark.parametrize("template", ["{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:3}", "{a}{b:}{c!s}"])
def test_more_than_a_name_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a field in braces"):
        template_fields(template)
