{{/* Counts that several places have to agree on. Numbers in values are floats, so they need `int`. */}}

{{/* Fewest pods that serve. */}}
{{- define "llm-proxy.fewestPods" -}}
{{- if .Values.autoscaling.enabled -}}{{ int .Values.autoscaling.minReplicas }}{{- else -}}{{ int .Values.replicas }}{{- end -}}
{{- end -}}

{{/* Most pods that serve, outside of roll-outs. */}}
{{- define "llm-proxy.mostPods" -}}
{{- if .Values.autoscaling.enabled -}}{{ int .Values.autoscaling.maxReplicas }}{{- else -}}{{ int .Values.replicas }}{{- end -}}
{{- end -}}

{{/* Pods beyond these during a roll-out. Kubernetes rounds a percentage up. */}}
{{- define "llm-proxy.surge" -}}
{{- if eq .Values.database.driver "sqlite" -}}
0
{{- else if hasSuffix "%" (toString .Values.rollout.maxSurge) -}}
{{- $percent := trimSuffix "%" .Values.rollout.maxSurge | int -}}
{{- div (add (mul $percent (include "llm-proxy.mostPods" . | int)) 99) 100 -}}
{{- else -}}
{{- int .Values.rollout.maxSurge -}}
{{- end -}}
{{- end -}}

{{/* Connections that the database has for this release; 0 where that is not known. */}}
{{- define "llm-proxy.connections" -}}
{{- $database := include "llm-proxy.inCluster" . | fromYaml -}}
{{- .Values.database.maxConnections | default $database.connections | default 0 | int -}}
{{- end -}}

{{/* From the first word of Kubernetes to its last: the wait for load balancers, the drain, the last settlements. */}}
{{- define "llm-proxy.terminationGracePeriod" -}}
{{- with .Values.shutdown -}}
{{- add (int .preStopSeconds) (int .graceSeconds) (int .marginSeconds) -}}
{{- end -}}
{{- end -}}

{{/* A setting's value as text. Whole numbers stay whole: 100000000 is not to become 1e+08. */}}
{{- define "llm-proxy.text" -}}
{{- if kindIs "float64" . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
