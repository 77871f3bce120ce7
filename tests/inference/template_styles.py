"""Chat templates in the styles of published models, in words of our own, and hostile ones."""

CHATML = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You help.<|im_end|>
{% endif -%}
{%- for m in messages -%}
<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

LLAMA2 = """\
{% set ns = namespace(opening='') %}
{% for turn in messages %}
    {% if turn.role == 'system' %}
        {% set ns.opening = '<<SYS>>\\n' + turn.content.strip() + '\\n<</SYS>>\\n\\n' %}
        {% continue %}
    {% elif turn.role == 'user' %}
        {{- bos_token ~ '[INST] ' ~ (ns.opening ~ turn.content) | trim ~ ' [/INST]' -}}
        {% set ns.opening = '' %}
    {% else %}
        {{- ' ' ~ turn.content | trim ~ ' ' ~ eos_token -}}
    {% endif %}
{% endfor %}"""

LLAMA3 = """\
{%- macro head(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools is not none -%}{{- raise_exception('no tools here') -}}{%- endif -%}
{%- for m in messages -%}
{{- head(m.role) + m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}"""

ZEPHYR = """\
{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\\n' + m['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

ALPACA = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}
{%- elif m.role == 'user' %}{{ '### Instruction:\n' + m.content.strip() + '\n\n' }}
{%- else %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"""

NO_SYSTEM = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('There is no system role') }}{% endif %}
{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate') }}
{% endif %}
{% set who = 'model' if m['role'] == 'assistant' else m['role'] %}
{{ '<start_of_turn>' + who + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

# It looks into answers, as those of models that reason first do.
REASONING = """\
{%- for m in messages -%}
{%- set text = m.content -%}
{%- if m.role == 'assistant' and '</think>' in text -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role | title + ': ' + text + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>Assistant: <think>\\n' if add_generation_prompt -}}"""

# It looks at what a user says.
LOOKING = """\
{{ bos_token }}{% for m in messages %}{% if '<' in m.content and m.content | length > 12 %}
(markup) {% endif %}{{ m.role | upper }}: {{ m.content | replace('x', 'X') }}
{{ eos_token }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

STYLES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "alpaca": ALPACA,
    "no system": NO_SYSTEM,
    "reasoning": REASONING,
    "looking": LOOKING,
}
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)
ORDINARY = ("<think>", "</think>", "<tool_call>")  # tokens of their own, but not special

LOOPS = {
    "for ever": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a huge power": "{{ 10 ** 100000000 }}",
}
LARGE = {
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "repeated": ("{{ 'a' * 10**10 }}", "MiB of memory"),
    "doubled": (
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "MiB of memory",
    ),
    "center": ("{{ 'x' | center(10**9) }}", "MiB of memory"),
    "percent": ("{{ '%999999999d' % 1 }}", "MiB of memory"),
    "format": ("{{ '{:>9999999999}'.format(1) }}", "MiB of memory"),
    "joined": ("{{ range(99999) | join('a' * 10**5) }}", "MiB of memory"),
    "a list": ("{{ (messages * 10**9) | length }}", "MiB of memory"),
    "indented": ("{{ messages | tojson(indent=10**9) }}", "MiB of memory"),
    "long": ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "writes too much"),
    "a macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
    "a loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself"),
    "nested": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "calls itself"),
}
REACHING = {
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "item": "{{ messages['__class__'] }}",
    "filter": "{{ messages | attr('__len__') }}",
    "map": "{{ messages | map(attribute='__class__') | list }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "raise_exception": "{{ raise_exception.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "type": "{{ dict.mro() }}",
    "namespace": "{{ namespace(__class__=1) }}",
    "append": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
}
WRONG = {
    "syntax": ("{% for %}", "is not valid Jinja: line 1"),
    "blocks": ("\n{% if a %}", "is not valid Jinja: line 2"),
    "filter": ("{{ 'a' | nonsense }}", "nonsense"),
    "undefined": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "surrogate": ("{{ '\\ud800' }}", "not UTF-8"),
}
