"""The Jinja templates of the card, in a module because a Flower app includes no other kind of file."""

__all__ = ["TEMPLATES"]

_MARKDOWN = """\
{% macro facts(section) %}
{% for key, fact in section.items() %}
- **{{ key | heading }}**{% if fact.source != "not stated" %} ({{ fact.source }}){% endif %}:
{%- if fact.value | listed %}

{% for each in fact.value %}
  - {{ each | words }}
{% endfor %}
{% else %}
 {{ fact.value | words }}
{% endif %}
{% endfor %}
{% endmacro %}
# Robustness card

Terms follow {{ card.vocabulary }}. In brackets: where a fact comes from. What nobody said is "not stated".

## Run

{% for key, value in card.run.items() %}
- **{{ key | heading }}**: {{ value | words or "not stated" }}
{% endfor %}

## Claim

{{ facts(card.claim) }}
## Threat

In the terms of NIST AI 100-2: stage of learning, the attacker's goal, knowledge and capability, and the mitigation.

{{ facts(card.threat) }}
## Accountability

{{ facts(card.accountability) }}
## Deployment

{{ facts(card.deployment) }}
## Limits of the rule

From the rule's own file; properties are those of the conformance suite, `tests/test_conformance.py`.

{% for part in card.limits.rule %}
### {{ part.part | words }}

Condition: {{ part.condition | words }}

{% for lack in part.lacks %}
- lacks *{{ lack.property }}*: {{ lack.reason | words }} (as tried: {{ lack.cases | words }})
{% endfor %}

```
{{ part.description }}
```

{% else %}
Not stated: the rule is not one of flwr-robust's.

{% endfor %}
## Limits of every rule

{% for limit in card.limits.general %}
- {{ limit }}
{% endfor %}

Made {{ card.made }}.
"""

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Robustness card</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
  h1 { font-size: 1.6rem; line-height: 1.25 }
  h2 { font-size: 1.2rem; margin-top: 2rem }
  table { border-collapse: collapse; width: 100% }
  td, th { padding: .3rem .7rem; text-align: left; vertical-align: top; overflow-wrap: anywhere }
  th { width: 12rem; font-weight: 600 }
  td:last-child { color: #555; font-size: .9rem; width: 7rem }
  tr + tr > * { border-top: 1px solid #ddd }
  pre { background: #f3f3f3; padding: .7rem; overflow-x: auto; font-size: .85rem }
  .unknown { color: #8a4b00 }
</style>
</head>
<body>
{% macro facts(section) %}
<table>
{% for key, fact in section.items() %}
{% set known = fact.source != "not stated" %}
<tr>
<th>{{ key | heading }}</th>
<td{{ "" if known else ' class="unknown"' | safe }}>
{% if fact.value | listed %}
<ul>
{% for each in fact.value %}
<li>{{ each | words }}</li>
{% endfor %}
</ul>
{% else %}
{{ fact.value | words }}
{% endif %}
</td>
<td>{{ fact.source if known }}</td>
</tr>
{% endfor %}
</table>
{% endmacro %}
<h1>Robustness card</h1>
<p>Terms follow {{ card.vocabulary }}. On the right: where a fact comes from. What nobody said is “not stated”.</p>
<h2>Run</h2>
<table>
{% for key, value in card.run.items() %}
<tr><th>{{ key | heading }}</th><td>{{ value | words or "not stated" }}</td><td></td></tr>
{% endfor %}
</table>
<h2>Claim</h2>
{{ facts(card.claim) }}
<h2>Threat</h2>
<p>In the terms of NIST AI 100-2: stage of learning, the attacker’s goal, knowledge and capability, and the
mitigation.</p>
{{ facts(card.threat) }}
<h2>Accountability</h2>
{{ facts(card.accountability) }}
<h2>Deployment</h2>
{{ facts(card.deployment) }}
<h2>Limits of the rule</h2>
<p>From the rule’s own file; properties are those of the conformance suite, <code>tests/test_conformance.py</code>.</p>
{% for part in card.limits.rule %}
<h3><code>{{ part.part }}</code></h3>
<p>Condition: {{ part.condition }}</p>
{% if part.lacks %}
<ul>
{% for lack in part.lacks %}
<li>lacks <em>{{ lack.property }}</em>: {{ lack.reason }} (as tried: <code>{{ lack.cases | words }}</code>)</li>
{% endfor %}
</ul>
{% endif %}
<details><summary>What its file says</summary><pre>{{ part.description }}</pre></details>
{% else %}
<p class="unknown">Not stated: the rule is not one of flwr-robust’s.</p>
{% endfor %}
<h2>Limits of every rule</h2>
<ul>
{% for limit in card.limits.general %}
<li>{{ limit }}</li>
{% endfor %}
</ul>
<p>Made {{ card.made }}.</p>
</body>
</html>
"""

TEMPLATES = {"md": _MARKDOWN, "html": _PAGE}
"""The templates by file extension."""
