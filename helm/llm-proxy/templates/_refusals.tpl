{{/*
What cannot work is refused before anything is installed, all of it at once, each with what to do about it. No sentence
holds a value that may be a secret.
*/}}

{{- define "llm-proxy.refuse" -}}
{{- $found := list -}}
{{- range list "size" "database" "inCluster" "secrets" "migrations" "settings" "environment" "network" "evictions" "monitoring" -}}
{{- $found = concat $found (include (printf "llm-proxy.refusals.%s" .) $ | fromJsonArray) -}}
{{- end -}}
{{- if $found -}}
{{- fail (printf "\n\nThese values cannot work:\n- %s\n" (join "\n- " $found)) -}}
{{- end -}}
{{- end -}}

{{- define "llm-proxy.refusals.size" -}}
{{- $found := list -}}
{{- with .Values -}}
{{- if eq .database.driver "sqlite" -}}
{{- $remedy := "SQLite serves one process only, because its file has one writer" -}}
{{- if .autoscaling.enabled -}}
{{- $found = append $found (printf "autoscaling.enabled: %s; set it to false, or use database.driver postgres or mysql" $remedy) -}}
{{- else if gt (int .replicas) 1 -}}
{{- $found = append $found (printf "replicas %d: %s; set replicas to 1, or use database.driver postgres or mysql" (int .replicas) $remedy) -}}
{{- end -}}
{{- if gt (int .workers) 1 -}}
{{- $found = append $found (printf "workers %d: %s; set workers to 1, or use database.driver postgres or mysql" (int .workers) $remedy) -}}
{{- end -}}
{{- end -}}
{{- with .autoscaling -}}
{{- if .enabled -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- $found = append $found (printf "autoscaling: minReplicas %d is more than maxReplicas %d; exchange them, or raise maxReplicas" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if not (or (int .targetCPUUtilizationPercentage) (int .targetMemoryUtilizationPercentage)) -}}
{{- $found = append $found "autoscaling: there is nothing to scale by; set autoscaling.targetCPUUtilizationPercentage, such as 70" -}}
{{- end -}}
{{- range $resource, $percentage := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage -}}
{{- if and (int $percentage) (not (dig "requests" $resource "" $.Values.resources)) -}}
{{- $found = append $found (printf "autoscaling: a percentage of the requested %s needs a request; set resources.requests.%s" $resource $resource) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey .rollout "maxSurge") (ne .database.driver "sqlite") (regexMatch "^0%?$" (toString .rollout.maxSurge)) (regexMatch "^0%?$" (toString .rollout.maxUnavailable)) -}}
{{- $found = append $found "rollout: with maxSurge and maxUnavailable both 0 no pod can ever be replaced; set rollout.maxSurge to 1" -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.database" -}}
{{- $found := list -}}
{{- $limit := include "llm-proxy.connections" . | int -}}
{{- if and $limit (ne .Values.database.driver "sqlite") -}}
{{- $most := include "llm-proxy.mostPods" . | int -}}
{{- $surge := include "llm-proxy.surge" . | int -}}
{{- $processes := mul (int .Values.workers) (add $most $surge) -}}
{{- $wanted := mul (int .Values.database.poolSize) $processes -}}
{{- if gt (int $wanted) $limit -}}
{{- $each := div $limit (max 1 $processes) -}}
{{- $remedy := ternary (printf "set database.poolSize to %d or less" $each) "have fewer pods or workers" (gt (int $each) 0) -}}
{{- $source := ternary "database.maxConnections is" "the in-cluster database has" (gt (int .Values.database.maxConnections) 0) -}}
{{- $found = append $found (printf "database.poolSize %d × workers %d × %d pods (%d, and %d more during a roll-out) may open %d connections, and %s %d; %s, or let the database have more" (int .Values.database.poolSize) (int .Values.workers) (add $most $surge) $most $surge $wanted $source $limit $remedy) -}}
{{- end -}}
{{- end -}}
{{- with .Values.database -}}
{{- if and .tls.ca.configMap .tls.ca.secret -}}
{{- $found = append $found "database.tls.ca: configMap and secret are both set; keep the one that has the authorities" -}}
{{- end -}}
{{- if eq .driver "sqlite" -}}
{{- $given := include "llm-proxy.secretKeys" $ | fromYaml -}}
{{- if and $.Values.sqlite.persistence.enabled $.Values.podSecurityContext.fsGroup (ne (toString $.Values.podSecurityContext.fsGroupChangePolicy) "OnRootMismatch") (not (and $given.managementToken $given.encryptionKey)) -}}
{{- $found = append $found "podSecurityContext.fsGroupChangePolicy: at each start Kubernetes would open the server's key files to their group, and the server refuses such files; set it to OnRootMismatch, or name a Secret in secrets.existingSecret" -}}
{{- end -}}
{{- if .existingSecret -}}
{{- $found = append $found "database.existingSecret: SQLite has no address; set database.driver to postgres or mysql, or leave the Secret out" -}}
{{- end -}}
{{- if or .tls.ca.configMap .tls.ca.secret .tls.clientCertificateSecret -}}
{{- $found = append $found "database.tls: SQLite has no connection to protect; set database.driver to postgres or mysql, or leave it out" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.inCluster" -}}
{{- $found := list -}}
{{- with .Values -}}
{{- if and .postgresql.enabled .mysql.enabled -}}
{{- $found = append $found "postgresql.enabled and mysql.enabled: the ledger is in one database; disable one of them" -}}
{{- end -}}
{{- range $kind, $driver := dict "postgresql" "postgres" "mysql" "mysql" -}}
{{- $database := index $.Values $kind -}}
{{- if $database.enabled -}}
{{- if ne $.Values.database.driver $driver -}}
{{- $found = append $found (printf "%s.enabled: database.driver is %s, so nothing would use it; set database.driver to %s, or disable it" $kind $.Values.database.driver $driver) -}}
{{- end -}}
{{- if or $.Values.database.existingSecret $.Values.secrets.databaseUrl -}}
{{- $found = append $found (printf "%s.enabled: the address of an external database is given too (database.existingSecret or secrets.databaseUrl); leave that out, or disable %s" $kind $kind) -}}
{{- end -}}
{{- if and $database.existingSecret (or $database.password $database.rootPassword) -}}
{{- $found = append $found (printf "%s: existingSecret and a password are both given; keep the Secret" $kind) -}}
{{- end -}}
{{- if not $database.existingSecret -}}
{{- range $name := ternary (list "password" "rootPassword") (list "password") (eq $kind "mysql") -}}
{{- if not (index $database $name) -}}
{{- $found = append $found (printf "%s.enabled: it has no password; name a Secret in %s.existingSecret (its keys are in values.yaml), or set %s.%s" $kind $kind $kind $name) -}}
{{- else if not (regexMatch "^[A-Za-z0-9_-]{8,}$" (index $database $name)) -}}
{{- $found = append $found (printf "%s.%s: it becomes a part of an address, so use letters, digits, _ and -, at least 8 of them" $kind $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.secrets" -}}
{{- $found := list -}}
{{- $external := and (ne .Values.database.driver "sqlite") (not (include "llm-proxy.inCluster" .)) -}}
{{- with .Values.secrets -}}
{{- $inClear := or .managementToken .encryptionKey .databaseUrl -}}
{{- if and .create .existingSecret -}}
{{- $found = append $found "secrets.create and secrets.existingSecret are both set; keep the Secret that exists, and create false" -}}
{{- else if and $inClear (not .create) -}}
{{- $found = append $found "secrets: there is a secret in clear, but create is false; put it into a Secret and name that in secrets.existingSecret, or set secrets.create to true" -}}
{{- end -}}
{{- if .create -}}
{{- if and .managementToken (not (regexMatch "^[!-~]{20,}$" .managementToken)) -}}
{{- $found = append $found "secrets.managementToken: at least 20 characters without spaces; make one with: openssl rand -hex 32" -}}
{{- end -}}
{{- if and .encryptionKey (not (regexMatch "^[A-Za-z0-9+/_-]{43}=?( *, *[A-Za-z0-9+/_-]{43}=?)*$" .encryptionKey)) -}}
{{- $found = append $found "secrets.encryptionKey: base64 of 32 bytes, several separated by commas; make one with: openssl rand -base64 32" -}}
{{- end -}}
{{- $postgres := regexMatch "^postgres(ql)?://" .databaseUrl -}}
{{- $mysql := or (regexMatch "^(mysql|mariadb)://" .databaseUrl) (regexMatch "@(tcp|unix)\\(" .databaseUrl) -}}
{{- if and .databaseUrl (not (or (and $postgres (eq $.Values.database.driver "postgres")) (and $mysql (eq $.Values.database.driver "mysql")))) -}}
{{- $found = append $found (printf "secrets.databaseUrl: it is no address for database.driver %s; PostgreSQL's begin with postgres://, MySQL's are user:password@tcp(host:3306)/name or begin with mysql://" $.Values.database.driver) -}}
{{- end -}}
{{- end -}}
{{- if ne $.Values.database.driver "sqlite" -}}
{{- $given := include "llm-proxy.secretKeys" $ | fromYaml -}}
{{- $where := "name a Secret that has it in secrets.existingSecret" -}}
{{- if not $given.managementToken -}}
{{- $found = append $found (printf "MANAGEMENT_TOKEN: it is required with database.driver %s; %s (key secrets.keys.managementToken)" $.Values.database.driver $where) -}}
{{- end -}}
{{- if not (or $given.encryptionKey .allowPlaintextApiKeys) -}}
{{- $found = append $found (printf "ENCRYPTION_KEY: it is required with database.driver %s; %s (key secrets.keys.encryptionKey), or set secrets.allowPlaintextApiKeys" $.Values.database.driver $where) -}}
{{- end -}}
{{- if and $external (not $given.databaseUrl) -}}
{{- $found = append $found (printf "DATABASE_URL: it is required with database.driver %s; name a Secret that has it in database.existingSecret or secrets.existingSecret (key database.key), or let the chart run a database for development" $.Values.database.driver) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.migrations" -}}
{{- $found := list -}}
{{- if eq .Values.migrations.mode "job" -}}
{{- $start := "set migrations.mode to start" -}}
{{- if eq .Values.database.driver "sqlite" -}}
{{- $found = append $found (printf "migrations.mode job: a SQLite file serves one process, and the running server has it; %s" $start) -}}
{{- else if include "llm-proxy.inCluster" . -}}
{{- $found = append $found (printf "migrations.mode job: the hook runs before the in-cluster database exists; %s" $start) -}}
{{- else if and .Values.secrets.create .Values.secrets.databaseUrl (not .Values.database.existingSecret) -}}
{{- $found = append $found (printf "migrations.mode job: the hook runs before the Secret that secrets.create makes exists; name one in database.existingSecret, or %s" $start) -}}
{{- end -}}
{{- if and .Values.sidecars (not (include "llm-proxy.hasNativeSidecars" .)) -}}
{{- $found = append $found (printf "migrations.mode job: before Kubernetes 1.29 sidecars never end, and neither would the hook; %s" $start) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.settings" -}}
{{- $found := list -}}
{{- $places := dict "DB_DRIVER" "database.driver" "DATABASE_PATH" "" "DATABASE_POOL_SIZE" "database.poolSize" "DATABASE_TLS_CA" "database.tls.ca" "DATABASE_TLS_CERT" "database.tls.clientCertificateSecret" "DATABASE_TLS_KEY" "database.tls.clientCertificateSecret" "LISTEN_ADDR" "" "WORKERS" "workers" "SHUTDOWN_DELAY" "shutdown.preStopSeconds" "SHUTDOWN_GRACE" "shutdown.graceSeconds" "ENABLE_TLS" "tls.enabled" "TLS_CERT_FILE" "tls.existingSecret" "TLS_KEY_FILE" "tls.existingSecret" "ALLOW_PLAINTEXT_API_KEYS" "secrets.allowPlaintextApiKeys" "API_CONFIG_PATH" "providers" "PRICES_PATH" "prices" -}}
{{- $secrets := dict "MANAGEMENT_TOKEN" "secrets.existingSecret" "ENCRYPTION_KEY" "secrets.existingSecret" "DATABASE_URL" "database.existingSecret" -}}
{{- $given := dict -}}
{{- range $name, $value := .Values.config -}}
{{- $_ := set $given $name (list (printf "config.%s" $name) (include "llm-proxy.text" $value)) -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $given .name -}}
{{- $found = append $found (printf "extraEnv %s: it is in config too; keep that" .name) -}}
{{- end -}}
{{- $_ := set $given .name (list (printf "extraEnv %s" .name) (.value | default "")) -}}
{{- end -}}
{{- range $name, $what := $given -}}
{{- $subject := first $what -}}
{{- if hasKey $secrets (trimSuffix "_FILE" $name) -}}
{{- $found = append $found (printf "%s: it is a secret, and is only taken as a file; name a Secret that has it in %s" $subject (get $secrets (trimSuffix "_FILE" $name))) -}}
{{- else if hasKey $places $name -}}
{{- $place := get $places $name -}}
{{- $found = append $found (printf "%s: %s" $subject (ternary (printf "set %s instead" $place) "the chart sets it itself; leave it out" (ne $place ""))) -}}
{{- else if regexMatch "://[^/@ ]*:[^/@ ]*@" (last $what) -}}
{{- $found = append $found (printf "%s: it is an address with a password in clear; put it into a Secret and take it by valueFrom.secretKeyRef in extraEnv" $subject) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.environment" -}}
{{- $found := list -}}
{{- $secret := "(?i)(token|passw(or)?d|secret|api_?key|access_?key|private_?key|encryption_?key|credentials?|database_?url|dsn)$" -}}
{{- $containers := list (dict "subject" "extraEnv" "env" .Values.extraEnv) -}}
{{- range .Values.sidecars -}}
{{- $containers = append $containers (dict "subject" (printf "sidecars %s, env" .name) "env" .env) -}}
{{- end -}}
{{- $known := list "MANAGEMENT_TOKEN" "ENCRYPTION_KEY" "DATABASE_URL" -}}
{{- range $container := $containers -}}
{{- range .env -}}
{{- $refused := and (eq $container.subject "extraEnv") (has .name $known) -}}
{{- if and (not $refused) .value (regexMatch $secret .name) (not (hasPrefix "/" .value)) -}}
{{- $found = append $found (printf "%s %s: by its name it is a secret, and it is in clear; put it into a Secret and take it by valueFrom.secretKeyRef" $container.subject .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.network" -}}
{{- $found := list -}}
{{- with .Values.ingress -}}
{{- if and .enabled .tls.enabled -}}
{{- if not .hosts -}}
{{- $found = append $found "ingress.tls: a certificate is for a host name; set ingress.hosts, such as [llm.example.com]" -}}
{{- end -}}
{{- if not .tls.secretName -}}
{{- $found = append $found "ingress.tls: it has no certificate; name a Secret of type kubernetes.io/tls in ingress.tls.secretName" -}}
{{- end -}}
{{- else if and .tls.enabled (not .enabled) -}}
{{- $found = append $found "ingress.tls: there is no Ingress; set ingress.enabled to true, or ingress.tls.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) -}}
{{- $found = append $found "tls: the pods have no certificate; name a Secret of type kubernetes.io/tls in tls.existingSecret, or set tls.enabled to false" -}}
{{- end -}}
{{- if and .Values.providers.config .Values.providers.existingConfigMap -}}
{{- $found = append $found "providers: config and existingConfigMap are both set; keep one of them" -}}
{{- end -}}
{{- if and .Values.prices.config .Values.prices.existingConfigMap -}}
{{- $found = append $found "prices: config and existingConfigMap are both set; keep one of them" -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.evictions" -}}
{{- $found := list -}}
{{- $fewest := include "llm-proxy.fewestPods" . | int -}}
{{- with .Values.podDisruptionBudget -}}
{{- $stay := toString .minAvailable -}}
{{- $leave := toString .maxUnavailable -}}
{{- if .enabled -}}
{{- if eq (printf "%s%s" $stay $leave) "" -}}
{{- $found = append $found "podDisruptionBudget: set minAvailable or maxUnavailable, or enabled to false" -}}
{{- end -}}
{{- $kept := 0 -}}
{{- if hasSuffix "%" $stay -}}
{{- $kept = div (add (mul (trimSuffix "%" $stay | int) $fewest) 99) 100 -}}
{{- else if $stay -}}
{{- $kept = int $stay -}}
{{- end -}}
{{- if and $stay (ge (int $kept) $fewest) -}}
{{- $found = append $found (printf "podDisruptionBudget.minAvailable %s of %d: no pod may ever be evicted, so no node can be drained; lower it, or have more pods" $stay $fewest) -}}
{{- else if and (eq $stay "") (regexMatch "^0+%?$" $leave) -}}
{{- $found = append $found "podDisruptionBudget.maxUnavailable 0: no pod may ever be evicted, so no node can be drained; set it to 1" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- define "llm-proxy.refusals.monitoring" -}}
{{- $found := list -}}
{{- if and .Values.serviceMonitor.enabled (hasKey .Values.config "ENABLE_METRICS") (not (has (toString .Values.config.ENABLE_METRICS) (list "true" "yes" "on" "1"))) -}}
{{- $found = append $found "serviceMonitor.enabled: config.ENABLE_METRICS is off, so there is nothing to scrape; drop one of them" -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
