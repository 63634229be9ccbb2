{{- define "forebay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for what names end with, such as -hosts and a StatefulSet's revision. */}}
{{- define "forebay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "forebay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "forebay.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The workload, its configuration and its label: the DaemonSet has a name of its own, so that both can run side by side. */}}
{{- define "forebay.workload" -}}
{{- include "forebay.fullname" . }}{{ if eq .Values.mode "node" }}-node{{ end }}
{{- end -}}

{{- define "forebay.selector" -}}
app.kubernetes.io/name: {{ include "forebay.name" . }}{{ if eq .Values.mode "node" }}-node{{ end }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay.hostsSelector" -}}
app.kubernetes.io/name: {{ include "forebay.name" . }}-hosts
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of everything, beside the selector. */}}
{{- define "forebay.labels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "forebay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "forebay.adminSecret" -}}
{{- .Values.admin.existingSecret | default (printf "%s-admin" (include "forebay.fullname" .)) -}}
{{- end -}}

{{/* Empty where there are none. */}}
{{- define "forebay.credentialsSecret" -}}
{{- if .Values.credentials.existingSecret -}}
{{- .Values.credentials.existingSecret -}}
{{- else if .Values.credentials.files -}}
{{- include "forebay.fullname" . }}-credentials
{{- end -}}
{{- end -}}

{{/* What both kinds of pods have of the proxy. */}}
{{- define "forebay.containerSecurity" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "forebay.env" -}}
- name: FOREBAY_ADMIN__TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "forebay.adminSecret" . }}
      key: token
      optional: true
{{- end -}}

{{- define "forebay.mounts" -}}
- {name: data, mountPath: /var/lib/forebay}
- {name: config, mountPath: /etc/forebay, readOnly: true}
{{- if include "forebay.credentialsSecret" . }}
- {name: credentials, mountPath: /run/secrets/forebay, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "forebay.volumes" -}}
- name: config
  configMap:
    name: {{ include "forebay.workload" . }}
{{- with include "forebay.credentialsSecret" . }}
- name: credentials
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Pods begin anew when what they read at start has changed. */}}
{{- define "forebay.podAnnotations" -}}
checksum/config: {{ include "forebay.toml" . | sha256sum }}
{{- if or .Values.credentials.files .Values.admin.token }}
checksum/secrets: {{ toJson (list .Values.credentials.files .Values.admin.token) | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}
