{{/* What the chart says of its own, before `config` of the values: the same as deploy/kubernetes. */}}
{{- define "forebay.defaults" -}}
{{- if eq .Values.mode "node" -}}
server: {listen: ["127.0.0.1:5000"]}
# For probes, which come from the node itself.
admin: {listen: "127.0.0.1:5001"}
storage: {path: /var/lib/forebay, max_size: 20GiB, min_free: 15%}
{{- else -}}
server: {listen: ["0.0.0.0:5000"], shutdown_grace: 30s}
# Probes and metrics are open; the API and the page stay closed without a token.
admin: {listen: "0.0.0.0:5001"}
# A little less than the volume.
storage: {path: /var/lib/forebay, max_size: 90%}
{{- end }}
log: {format: json}
{{- end -}}

{{- define "forebay.toml" -}}
{{- $config := mergeOverwrite (include "forebay.defaults" . | fromYaml) (deepCopy .Values.config) -}}
{{- range $section, $keys := $config -}}
[{{ $section }}]
{{ include "forebay.tomlKeys" $keys }}
{{ end -}}
{{- range .Values.registries -}}
[[registry]]
{{ include "forebay.tomlKeys" . }}
{{ end -}}
{{- end -}}

{{- define "forebay.tomlKeys" -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{ $key }} = {{ include "forebay.tomlValue" $value }}
{{ end -}}
{{- end -}}
{{- end -}}

{{/* Strings, numbers and booleans are written alike in JSON and TOML; tables inside of a value are not. */}}
{{- define "forebay.tomlValue" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s = %s" $key (include "forebay.tomlValue" $value)) -}}
{{- end -}}
{ {{ join ", " $pairs }} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}
{{- $items = append $items (include "forebay.tomlValue" .) -}}
{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}
