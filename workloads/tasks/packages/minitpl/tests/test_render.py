"""What templates give."""

import pytest
from minitpl import render
from minitpl.lexer import TemplateError


def test_values():
    assert render("Hi {{ name }}!", name="Ann") == "Hi Ann!"
    assert render("{{ a.b.1 }}", a={"b": [1, 2]}) == "2"
    assert render("[{{ a.b.2 }}{{ nope }}]", a={"b": [1, 2]}) == "[]"


def test_filters():
    assert render("{{ a | upper }}-{{ b | length }}", a="x", b=[1, 2, 3]) == "X-3"
    assert render("{{ a | lower | title }}", a="HELLO YOU") == "Hello You"
    assert render("{{ a | escape }}", a='<a href="&">') == "&lt;a href=&quot;&amp;&quot;&gt;"


def test_if():
    source = "{% if a %}yes{% else %}no{% endif %}"
    assert render(source, a=1) == "yes"
    assert render(source, a=0) == "no"
    assert render("{% if not a %}none{% endif %}", a=[]) == "none"
    assert render("{% if not a %}none{% endif %}", a=[1]) == ""


def test_for():
    source = "{% for x in xs %}{{ loop.index }}={{ x }}{% if not loop.last %}, {% endif %}{% endfor %}"
    assert render(source, xs=["a", "b", "c"]) == "1=a, 2=b, 3=c"
    assert render(source, xs=[]) == ""
    assert render("{% for x in xs %}{% if loop.first %}>{% endif %}{{ x }}{% endfor %}", xs="ab") == ">ab"


def test_nesting():
    source = "{% for row in rows %}{% for x in row %}{{ x }}{% endfor %};{% endfor %}"
    assert render(source, rows=[[1, 2], [3], []]) == "12;3;;"


def test_errors():
    for source in ("{% if a %}", "{% for x xs %}{% endfor %}", "{% what %}", "{{ | upper }}"):
        with pytest.raises(TemplateError):
            render(source)
