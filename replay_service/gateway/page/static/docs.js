// Swagger UI on the description that the service gives of itself.
"use strict";

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
